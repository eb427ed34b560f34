//go:build race

package recorder

func init() { raceDetector = true }
