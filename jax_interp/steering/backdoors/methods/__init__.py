"""Methods that look for triggers. One file each, registered."""
