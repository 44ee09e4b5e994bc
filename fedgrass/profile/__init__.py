"""What the data of a fleet are like, without the data: sums that devices make, and that a job adds up."""
