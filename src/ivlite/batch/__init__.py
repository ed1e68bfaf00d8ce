"""Many inputs, one line of JSON each: what is asked, what was answered before a kill, and who answers."""
