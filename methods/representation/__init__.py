"""Methods for frozen encoders and self-supervised learning: their sets are scored by linear probes and transfer."""
