package main

import (
	"fmt"
	"io"
	"os"
)

// Main runs the command line args and returns the exit status.
func Main(args []string, stdin, stdout, stderr *os.File) int {
	fmt.Fprintln(io.Writer(stderr), "ring3: not built yet")
	return exitUsage
}

const exitUsage = 2
