"""The embedded default: scenes of real drawings with captions, masks and boxes."""
