package main

import (
	"fmt"

	"github.com/spf13/cobra"

	"github.com/replypath/replypath/internal/version"
)

func newVersion(w *world) *cobra.Command {
	return &cobra.Command{
		Use:     "version",
		Short:   "Say which replypath this is",
		Long:    "Say which replypath this is: version, commit, Go version and platform.",
		GroupID: groupOther,
		Args:    cobra.NoArgs,
		RunE: command(func(*cobra.Command, []string) error {
			_, err := fmt.Fprintln(w.stdout, version.Line())
			return err
		}),
	}
}
