"""Simulating a search: the real optimiser, driver, Balsam server, agent and launcher, on nodes that are only clocks."""
