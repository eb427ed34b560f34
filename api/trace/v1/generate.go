// Package tracev1 is the API between replypath's agent and its clients,
// generated from trace.proto.
package tracev1

// protoc is Debian's protobuf-compiler; its plugins are pinned in go.mod.
//go:generate sh -c "protoc --plugin=protoc-gen-go=$(go tool -n protoc-gen-go) --plugin=protoc-gen-go-grpc=$(go tool -n protoc-gen-go-grpc) --go_out=. --go_opt=paths=source_relative --go-grpc_out=. --go-grpc_opt=paths=source_relative trace.proto"
