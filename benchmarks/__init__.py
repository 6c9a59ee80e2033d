"""Speed and memory, always against something measured in the same run: `make bench`. See README.md
here."""
