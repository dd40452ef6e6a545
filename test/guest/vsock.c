// vsock connect PORT: connects to a port of the host (CID 2).
// vsock listen PORT: takes one connection from the host.
// Standard input goes to the connection, and what comes from there to standard
// output, both at the same time.
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <linux/vm_sockets.h>
#include <unistd.h>

static void die(const char *what) {
	perror(what);
	exit(1);
}

static void copy(int from, int to) {
	static char buf[1 << 16];
	ssize_t n;
	while ((n = read(from, buf, sizeof buf)) > 0)
		for (ssize_t done = 0, w; done < n; done += w)
			if ((w = write(to, buf + done, n - done)) < 0)
				die("write");
	if (n < 0)
		die("read");
}

int main(int argc, char **argv) {
	if (argc != 3)
		return 2;
	struct sockaddr_vm a = {.svm_family = AF_VSOCK, .svm_cid = VMADDR_CID_HOST, .svm_port = atoi(argv[2])};
	int s = socket(AF_VSOCK, SOCK_STREAM, 0);
	if (s < 0)
		die("socket");
	if (!strcmp(argv[1], "listen")) {
		int l = s;
		a.svm_cid = VMADDR_CID_ANY;
		if (bind(l, (void *)&a, sizeof a) || listen(l, 1) || (s = accept(l, NULL, NULL)) < 0)
			die("listen");
	} else if (connect(s, (void *)&a, sizeof a)) {
		die("connect");
	}
	pid_t writer = fork();
	if (writer == 0) {
		copy(0, s);
		if (shutdown(s, SHUT_WR))
			die("shutdown");
		return 0;
	}
	copy(s, 1);
	int status;
	waitpid(writer, &status, 0);
	return status != 0;
}
