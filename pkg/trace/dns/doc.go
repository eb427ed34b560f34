// Package dns reads DNS messages as they are seen on the way: whole, or cut short.
// Names are kept in their presentation form (RFC 1035, section 5.1), in which a dot or a
// space within a label is escaped, so that a name never means another one.
package dns
