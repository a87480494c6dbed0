"""The stage *verify*: an image in, a report out. Checks look and judge; nothing here changes an image."""
