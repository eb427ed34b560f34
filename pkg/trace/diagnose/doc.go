// Package diagnose names the cause of a case.
//
// The catalogue is a table of rules, one for each finding. A rule looks at a
// case (what the kernel did to one exchange) and at what the host said of itself
// when it was asked, and either explains the case or passes. Rules are tried in
// the order of the table, root causes before their messengers, and the first
// that explains wins: one fault, one finding.
package diagnose
