// Package host holds the raw Linux and processor interfaces that direct
// execution needs: memfds, futexes, processes, processor features. It decides
// nothing.
package host
