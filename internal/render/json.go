package render

import (
	"bytes"
	"encoding/json"
	"fmt"
	"strings"
	"unicode/utf8"

	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"

	tracev1 "github.com/replypath/replypath/api/trace/v1"
)

var protoJSON = protojson.MarshalOptions{UseProtoNames: true, EmitDefaultValues: true}

// JSON returns one message as one line of JSON with a newline: proto field
// names, fields in the order of the proto, zero values written out. The output
// is stable. For an answer's oneof that is {"finding":{…}}, {"path":{…}} or
// {"summary":{…}}.
func JSON(m proto.Message) ([]byte, error) {
	raw, err := protoJSON.Marshal(m)
	if err != nil {
		// Strings on the wire are valid UTF-8; one made in this process may not be.
		clean := proto.Clone(m)
		mendStrings(clean.ProtoReflect())
		if raw, err = protoJSON.Marshal(clean); err != nil {
			return nil, fmt.Errorf("encode %s: %w", m.ProtoReflect().Descriptor().Name(), err)
		}
	}
	// protojson varies its white space on purpose.
	var line bytes.Buffer
	if err := json.Compact(&line, raw); err != nil {
		return nil, fmt.Errorf("compact JSON: %w", err)
	}
	return append(escapeJSON(line.Bytes()), '\n'), nil
}

// NodeJSON returns {"node":{…}} and a newline.
func NodeJSON(n *tracev1.Node) ([]byte, error) {
	return NamedJSON("node", n)
}

// mendStrings writes each byte that is not UTF-8 as \xNN.
func mendStrings(m protoreflect.Message) {
	m.Range(func(f protoreflect.FieldDescriptor, v protoreflect.Value) bool {
		switch {
		case f.IsMap(): // trace.proto has none
		case f.IsList():
			list := v.List()
			for i := range list.Len() {
				switch f.Kind() {
				case protoreflect.StringKind:
					list.Set(i, protoreflect.ValueOfString(mend(list.Get(i).String())))
				case protoreflect.MessageKind:
					mendStrings(list.Get(i).Message())
				}
			}
		case f.Kind() == protoreflect.StringKind:
			m.Set(f, protoreflect.ValueOfString(mend(v.String())))
		case f.Kind() == protoreflect.MessageKind:
			mendStrings(v.Message())
		}
		return true
	})
}

func mend(s string) string {
	if utf8.ValidString(s) {
		return s
	}
	var b strings.Builder
	for i := 0; i < len(s); {
		r, size := utf8.DecodeRuneInString(s[i:])
		if r == utf8.RuneError && size == 1 {
			writeHex(&b, `\x`, rune(s[i]), 2)
		} else {
			b.WriteString(s[i : i+size])
		}
		i += size
	}
	return b.String()
}
