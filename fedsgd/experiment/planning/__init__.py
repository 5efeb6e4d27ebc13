"""Plan of a run: a calibration of its first rounds, and estimates of the other rounds."""
