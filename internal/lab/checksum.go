package lab

import (
	"fmt"
	"unsafe"

	"golang.org/x/sys/unix"
)

// sumInSoftware makes a device's host compute checksums itself. A veth leaves
// them to hardware that is not there; a switch in user space takes them as they are.
func (h *host) sumInSoftware(device string) error {
	return enter(h.ns, func() error {
		fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return fmt.Errorf("open socket: %w", err)
		}
		defer unix.Close(fd)
		value := struct{ command, data uint32 }{unix.ETHTOOL_STXCSUM, 0} // struct ethtool_value
		request := struct {
			name [unix.IFNAMSIZ]byte
			data unsafe.Pointer
			_    [16]byte
		}{data: unsafe.Pointer(&value)} // struct ifreq
		copy(request.name[:unix.IFNAMSIZ-1], device)
		if _, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), unix.SIOCETHTOOL, uintptr(unsafe.Pointer(&request))); errno != 0 {
			return fmt.Errorf("switch checksum offload of %s off: %w", device, errno)
		}
		return nil
	})
}
