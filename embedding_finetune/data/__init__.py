"""From pairs in any form to a collection without a leak, and negatives out of it."""
