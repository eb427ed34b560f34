// Package meshname finds the names that a node gives to what is in a mesh: on
// the command line and in the environment of kuma-dp.
package meshname
