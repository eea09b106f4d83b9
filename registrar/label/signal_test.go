package label

import "testing"

func TestParseSignal(t *testing.T) {
	tests := []struct {
		in   string
		want int // 0 = an error
		name string
	}{
		{"TERM", 15, "SIGTERM"}, {"SIGTERM", 15, "SIGTERM"}, {"sigterm", 15, "SIGTERM"}, {"15", 15, "SIGTERM"},
		{"SIGKILL", 9, "SIGKILL"}, {"QUIT", 3, "SIGQUIT"}, {"HUP", 1, "SIGHUP"}, {"WINCH", 28, "SIGWINCH"}, {"CONT", 18, "SIGCONT"},
		{"CLD", 17, "SIGCHLD"}, {"IOT", 6, "SIGABRT"}, {"POLL", 29, "SIGIO"}, {"31", 31, "SIGSYS"},
		{"SIGRTMIN", 34, "SIGRTMIN"}, {"SIGRTMIN+3", 37, "SIGRTMIN+3"}, {"RTMIN+15", 49, "SIGRTMIN+15"}, {"rtmin+16", 50, "SIGRTMAX-14"},
		{"RTMAX-14", 50, "SIGRTMAX-14"}, {"RTMAX-1", 63, "SIGRTMAX-1"}, {"RTMAX", 64, "SIGRTMAX"}, {"37", 37, "SIGRTMIN+3"}, {"64", 64, "SIGRTMAX"},
		{"RTMIN+30", 64, "SIGRTMAX"}, {"RTMAX-30", 34, "SIGRTMIN"},
		{"", 0, ""}, {"SIG", 0, ""}, {"SIGSIGTERM", 0, ""}, {"HALT", 0, ""}, {"0", 0, ""}, {"-15", 0, ""}, {"32", 0, ""}, {"33", 0, ""}, {"65", 0, ""},
		{"RTMIN+31", 0, ""}, {"RTMIN-1", 0, ""}, {"RTMAX+1", 0, ""}, {"RTMIN+", 0, ""}, {"RTMIN+-1", 0, ""}, {"RTMIN++1", 0, ""}, {"TERM\n", 0, ""},
	}
	for _, tt := range tests {
		got, err := ParseSignal(tt.in)
		if got != tt.want || (err == nil) != (tt.want != 0) {
			t.Errorf("ParseSignal(%q) = %d, %v; want %d", tt.in, got, err, tt.want)
		}
		if name := SignalName(got); name != tt.name {
			t.Errorf("SignalName(%d) = %q, want %q", got, name, tt.name)
		}
	}
}

// Every signal can be given by its own name.
func TestSignalNames(t *testing.T) {
	for n := 1; n <= 64; n++ {
		if n == 32 || n == 33 {
			continue
		}
		if got, err := ParseSignal(SignalName(n)); err != nil || got != n {
			t.Errorf("signal %d is called %q, which is signal %d: %v", n, SignalName(n), got, err)
		}
	}
}
