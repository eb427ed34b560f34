// Command image packs the agent and the CLI into an OCI image, without a
// container engine and without a registry.
//
// The archive that it writes is both an OCI image layout, for `ctr images
// import`, and a `docker save` archive, for `docker load`. The same inputs give
// the same bytes.
package main

import (
	"flag"
	"fmt"
	"io"
	"os"
	"time"
)

func main() {
	if err := run(os.Args[1:], os.Stdout, os.Stderr); err != nil {
		fmt.Fprintln(os.Stderr, "image:", err)
		os.Exit(1)
	}
}

func run(args []string, stdout, stderr io.Writer) error {
	flags := flag.NewFlagSet("image", flag.ContinueOnError)
	flags.SetOutput(stderr)
	flags.Usage = func() {
		fmt.Fprintln(stderr, "usage: image [flags] program... (the first one is the image's entrypoint)")
		flags.PrintDefaults()
	}
	output := flags.String("o", "", "archive to write")
	name := flags.String("name", "", "full name of the image, with registry and tag")
	version := flags.String("version", "", "version label")
	revision := flags.String("revision", "", "commit label")
	created := flags.Int64("time", 0, "time of creation of the image and its files, in seconds since 1970")
	if err := flags.Parse(args); err != nil {
		return err
	}

	tag, err := parseName(*name)
	if err != nil {
		return err
	}
	image, err := build(contents{
		programs: flags.Args(),
		version:  *version,
		revision: *revision,
		created:  time.Unix(*created, 0).UTC(),
	})
	if err != nil {
		return err
	}
	if err := writeFile(*output, tag, image); err != nil {
		return err
	}
	digest, err := image.Digest()
	if err != nil {
		return fmt.Errorf("digest image: %w", err)
	}
	fmt.Fprintf(stdout, "%s: %s@%s\n", *output, tag, digest)
	return nil
}
