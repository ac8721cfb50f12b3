"""One thin script a job, for `ray job submit`."""
