"""Why it does not work here: libraries, machine, and with shards the road from data to scores."""
