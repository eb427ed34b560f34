package diagnose

// shapes are the findings that follow from the shape of the path.
var shapes = map[string]bool{
	"reply-wrong-source": true, "reply-policy-routed": true, "routing-loop": true,
	"neighbor-conflict": true, "accept-queue-full": true, "conntrack-entry-lost": true,
}
