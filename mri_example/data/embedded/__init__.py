"""The anatomy that ships with the repository; NOTICE names its sources."""
