"""From image files to pixels on the device."""
