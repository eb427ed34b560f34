// Package agent wires replypath's daemon together: probe, correlation,
// investigation, memory, and the services that answer from it. The CLI runs the
// same agent in its own process when there is none to ask.
package agent
