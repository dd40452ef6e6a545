package main

import "context"

// run boots the machine that o describes.
func run(context.Context, *runOptions) error {
	return withStatus(statusInternal, "virtual machines do not run yet")
}
