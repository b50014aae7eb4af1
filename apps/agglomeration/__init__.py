"""Stage `agglomeration`: objects that the network joins when it looks again where they touch become one."""
