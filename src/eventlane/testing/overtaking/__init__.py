"""What `eventlane prove overtake` goes through: the processes' job, the ordeal, and the proof."""
