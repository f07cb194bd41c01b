"""Reading, cleaning and splitting pairs without leakage, and selecting negatives."""
