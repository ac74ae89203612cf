"""Every stage and kernel of one question: times, traces, resources, commands for the profilers."""
