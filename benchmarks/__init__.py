"""The benchmarks: each measures Eventlane and the straight code for the same work, in turns."""
