"""The built-in data set: scenes composed of emoji drawings, with captions, masks and boxes."""
