// Command ring3 runs virtual machines with unmodified Linux kernels on hosts
// that offer no hardware virtualization, and needs no privileges for it.
package main

import "os"

func main() {
	os.Exit(Main(os.Args[1:], os.Stdin, os.Stdout, os.Stderr))
}
