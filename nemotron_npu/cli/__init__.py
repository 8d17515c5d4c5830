"""The command line: options, messages, results, output folders."""
