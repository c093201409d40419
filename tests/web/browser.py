"""A browser for the tests of the page.   in: this machine   out: the path of a Chromium, or why none

scripts/setup looks in the same places, and installs one where there is none.
"""

import os
import shutil
from pathlib import Path

NAMES = ("chromium", "chromium-browser", "google-chrome-stable", "google-chrome", "chrome")
PLACES = (
    "/Applications/Google Chrome.app/Contents/MacOS/Google Chrome",
    "/Applications/Chromium.app/Contents/MacOS/Chromium",
)
# --no-sandbox: root in a container has no other way; the page is our own.
ARGUMENTS = ("--no-sandbox", "--disable-gpu", "--force-color-profile=srgb", "--lang=en")


def find_browser(downloaded: str | None = None) -> str | None:
    """An installed Chrome or Chromium, or the one that Playwright has downloaded."""
    found = [os.environ.get("NANOCHAT_BROWSER"), *(shutil.which(name) for name in NAMES)]
    candidates = [*found, *PLACES, downloaded]
    return next((path for path in candidates if path and Path(path).exists()), None)
