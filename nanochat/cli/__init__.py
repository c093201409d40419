"""THE DOORS.   in: argv   out: an exit code   who calls: the shell.  One verb a file."""
