"""A package, so that its fixtures end with it: while Playwright is open, no other test can have an
event loop of its own."""
