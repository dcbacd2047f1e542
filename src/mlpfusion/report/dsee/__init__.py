"""Cards and printed words of what the second stage of DSEE made."""
