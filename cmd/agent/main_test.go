package main

import (
	"bytes"
	"context"
	"strings"
	"testing"
)

// Everything here fails or ends before anything is traced.
func TestRun(t *testing.T) {
	tests := map[string]struct {
		args   []string
		env    map[string]string
		code   int
		stderr string // all of it, or its start when it ends in *
		stdout string // a part
	}{
		"help":            {args: []string{"--help"}, stdout: "--metrics-listen"},
		"version":         {args: []string{"--version"}, stdout: "replypath-agent version"},
		"unknown flag":    {args: []string{"--bogus"}, code: 2, stderr: "replypath-agent: unknown flag: --bogus (see 'replypath-agent --help')\n"},
		"argument":        {args: []string{"up"}, code: 2, stderr: "replypath-agent: unknown command \"up\"*"},
		"bad duration":    {args: []string{"--max-age", "soon"}, code: 2, stderr: "replypath-agent: invalid argument \"soon\" for \"--max-age\" flag*"},
		"bad level":       {args: []string{"--log-level", "loud"}, code: 2, stderr: "replypath-agent: bad configuration: --log-level: want debug, info, warn or error, got \"loud\"\n"},
		"bad format":      {args: []string{"--log-format", "xml"}, code: 2, stderr: "replypath-agent: bad configuration: --log-format: want text or json, got \"xml\"\n"},
		"bad ring":        {args: []string{"--ring-bytes", "5000"}, code: 2, stderr: "replypath-agent: bad configuration: ring buffer of 5000 bytes*"},
		"bad variable":    {env: map[string]string{"REPLYPATH_MAX_AGE": "soon"}, code: 2, stderr: "replypath-agent: environment variable REPLYPATH_MAX_AGE: *"},
		"variable":        {env: map[string]string{"REPLYPATH_RING_BYTES": "5000"}, code: 2, stderr: "replypath-agent: bad configuration: ring buffer of 5000 bytes*"},
		"flag wins":       {args: []string{"--ring-bytes", "6000"}, env: map[string]string{"REPLYPATH_RING_BYTES": "5000"}, code: 2, stderr: "replypath-agent: bad configuration: ring buffer of 6000 bytes*"},
		"TCP without TLS": {args: []string{"--listen", "tcp://127.0.0.1:0"}, code: 2, stderr: "replypath-agent: bad configuration: listen on tcp://127.0.0.1:0: TCP needs mutual TLS*"},
		"no address":      {args: []string{"--listen="}, code: 2, stderr: "replypath-agent: bad configuration: no address to listen on\n"},
		"bad address":     {args: []string{"--listen", "nowhere"}, code: 2, stderr: "replypath-agent: bad configuration: parse address \"nowhere\": expected *"},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			var stdout, stderr bytes.Buffer
			lookup := func(name string) (string, bool) { v, ok := tt.env[name]; return v, ok }
			if code := run(context.Background(), tt.args, lookup, &stdout, &stderr); code != tt.code {
				t.Errorf("exit %d, want %d", code, tt.code)
			}
			want, prefix := strings.CutSuffix(tt.stderr, "*")
			if got := stderr.String(); prefix && !strings.HasPrefix(got, want) || !prefix && got != want || strings.Count(got, "\n") > 1 {
				t.Errorf("stderr %q, want %q", got, tt.stderr)
			}
			if !strings.Contains(stdout.String(), tt.stdout) {
				t.Errorf("stdout %q, want %q in it", stdout.String(), tt.stdout)
			}
		})
	}
}
