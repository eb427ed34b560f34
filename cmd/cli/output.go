package main

import (
	"errors"
	"fmt"
	"io"
	"syscall"

	"github.com/spf13/cobra"
	"google.golang.org/protobuf/proto"

	tracev1 "github.com/replypath/replypath/api/trace/v1"
	"github.com/replypath/replypath/internal/render"
)

// format is the value of -o.
type format string

const (
	formatText format = "text"
	formatJSON format = "json"
)

// String implements pflag.Value.
func (f *format) String() string { return string(*f) }

// Type implements pflag.Value.
func (f *format) Type() string { return "text|json" }

// Set implements pflag.Value.
func (f *format) Set(s string) error {
	switch format(s) {
	case formatText, formatJSON:
		*f = format(s)
		return nil
	}
	return fmt.Errorf("neither text nor json")
}

func (f *format) flag(cmd *cobra.Command) {
	*f = formatText
	cmd.Flags().VarP(f, "output", "o", "output: text, or json for one JSON object a line")
	must(cmd.RegisterFlagCompletionFunc("output", cobra.FixedCompletions([]string{"text", "json"}, cobra.ShellCompDirectiveNoFileComp)))
}

// must is for what only a mistake in this program can make fail.
func must(err error) {
	if err != nil {
		panic(err)
	}
}

// printer writes answers to stdout.
type printer struct {
	out     io.Writer
	json    bool
	text    render.Text
	written bool // something stands above
	block   bool // and what stands last is a block of lines
}

func (w *world) printer(f format) *printer {
	return &printer{out: w.stdout, json: f == formatJSON, text: w.text()}
}

func (p *printer) finding(f *tracev1.Finding) error {
	if p.json {
		return p.line(&tracev1.ExplainResponse{Result: &tracev1.ExplainResponse_Finding{Finding: f}})
	}
	return p.paragraph(p.text.Finding(f), true)
}

func (p *printer) path(path *tracev1.Path) error {
	if p.json {
		return p.line(&tracev1.ExplainResponse{Result: &tracev1.ExplainResponse_Path{Path: path}})
	}
	return p.paragraph(p.text.Path(path), false)
}

func (p *printer) summary(a *answer) error {
	if p.json {
		return p.line(&tracev1.ExplainResponse{Result: &tracev1.ExplainResponse_Summary{Summary: a.summary}})
	}
	return p.paragraph(p.text.Summary(a.summary, a.findings), true)
}

func (p *printer) lost(l *tracev1.LostEvents) error {
	if p.json {
		return p.line(&tracev1.WatchResponse{Result: &tracev1.WatchResponse_LostEvents{LostEvents: l}})
	}
	return p.paragraph(p.text.Lost(l), false)
}

// line writes one message as JSON.
func (p *printer) line(m proto.Message) error {
	line, err := render.JSON(m)
	if err != nil {
		return err
	}
	_, err = p.out.Write(line)
	return err
}

// named writes one message as JSON under a name.
func (p *printer) named(name string, m proto.Message) error {
	line, err := render.NamedJSON(name, m)
	if err != nil {
		return err
	}
	_, err = p.out.Write(line)
	return err
}

// paragraph writes text, with an empty line around blocks.
func (p *printer) paragraph(text string, block bool) error {
	if p.written && (block || p.block) {
		text = "\n" + text
	}
	p.written, p.block = true, block
	_, err := io.WriteString(p.out, text)
	return err
}

// whole writes an answer and returns what it means for the exit code. A reader
// that has gone does not change that.
func (p *printer) whole(a *answer) error {
	if err := p.answer(a); err != nil && !errors.Is(err, syscall.EPIPE) {
		return err
	}
	return a.exit()
}

// answer writes findings, paths and summary.
func (p *printer) answer(a *answer) error {
	for _, f := range a.findings {
		if err := p.finding(f); err != nil {
			return err
		}
	}
	for _, path := range a.paths {
		if err := p.path(path); err != nil {
			return err
		}
	}
	return p.summary(a)
}
