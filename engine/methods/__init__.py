"""The methods: one folder each (config, plan, losses, stages), and the maths they share."""
