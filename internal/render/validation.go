package render

import (
	"fmt"
	"strings"

	tracev1 "github.com/replypath/replypath/api/trace/v1"
)

// Validated returns the last lines of a validation, which asked about so many things.
func (t Text) Validated(s *tracev1.Summary, thing string) string {
	var b strings.Builder
	asked := count(s.GetPaths(), thing)
	head, look := fmt.Sprintf("Sound: %s asked about.", asked), green
	switch {
	case s.GetFindings() > 0:
		head, look = fmt.Sprintf("Not sound: %s, %s asked about.", count(s.GetFindings(), "fault"), asked), red
	case s.GetPaths() == 0:
		head, look = "Nothing could be checked.", yellow
	case s.GetVerdict() != "ok":
		head, look = fmt.Sprintf("No fault found, %s asked about, but not everything could be checked.", asked), yellow
	}
	t.wrap(&b, 0, "", words(look, head))
	return b.String()
}

// bypasses are findings whose packets reach somebody, past a proxy.
var bypasses = map[string]bool{"redirect-missing": true, "redirect-bypassed-ipv6": true}

// unsent says what is wrong where no packet is concerned; "" where one is.
func unsent(f *tracev1.Finding) string {
	if f.GetPath().GetClient() != "" || f.GetPath().GetServer() != "" {
		return ""
	}
	if f.GetId() == "mesh-name-ambiguous" {
		return "NAME IS AMBIGUOUS"
	}
	return ""
}

// redirectTold are the words beside the break of findings about redirection.
var redirectTold = map[string]string{
	"redirect-missing": "goes past the proxy", "redirect-bypassed-ipv6": "goes past the proxy",
	"redirect-target-not-listening": "nobody listens where it is redirected to", "redirect-loop": "sent back to the proxy",
	"loopback-down": "lo is down", "loopback-blocked": "dropped by a filter on lo", "loopback-source-leaked": "sent from an address of lo", "route-localnet-disabled": "a martian: route_localnet is off",
}
