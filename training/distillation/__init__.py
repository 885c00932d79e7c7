"""From several teachers to one student: who teaches which rows, the gate, the losses, one stage or two, calibration."""
