"""The local page of the command `demo`: what it shows of an image, and the small server that answers it."""
