package netstate

import (
	"errors"
	"slices"
	"testing"

	"github.com/replypath/replypath/pkg/trace"
)

// Three namespaces in a row; a fourth, with the same addresses, is linked to none of them.
func TestNeighborhood(t *testing.T) {
	a, b, c, stranger, friend := newSpace(t), newSpace(t), newSpace(t), newSpace(t), newSpace(t)
	a.connect("eth0", b, "eth0")
	b.connect("eth1", c, "eth0")
	stranger.connect("eth0", friend, "eth0")
	r := newTestReader(t, nil)
	got, err := r.Neighborhood(a.inode)
	must(t, err)
	slices.Sort(got)
	want := []trace.Netns{b.inode, c.inode}
	slices.Sort(want)
	if !slices.Equal(got, want) {
		t.Errorf("neighborhood = %v, want %v", got, want)
	}
	if got, err := r.Neighborhood(stranger.inode); err != nil || !slices.Equal(got, []trace.Netns{friend.inode}) {
		t.Errorf("neighborhood of the stranger = %v, %v", got, err)
	}
	if _, err := r.Neighborhood(1); !errors.Is(err, ErrNoNamespace) {
		t.Errorf("neighborhood of nothing: %v, want ErrNoNamespace", err)
	}
}
