/* Traffic between a guest and the host, timed in the guest.
 *
 *	traffic ADDR PORT KIND AMOUNT
 *
 * connects to the host's end (../main.go), says KIND and AMOUNT in a line, and
 * prints the seconds that it took. KINDs:
 *	down	AMOUNT MiB from the host
 *	up	AMOUNT MiB to the host, 64 KiB at a time
 *	small	AMOUNT MiB to the host, 1 KiB at a time
 *	echo	AMOUNT times 64 bytes there and back
 *	open	AMOUNT connections, one after the other, a byte each way
 */
#include <arpa/inet.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

static struct sockaddr_in peer = { .sin_family = AF_INET };
static char buffer[64 << 10];

static void die(const char *what)
{
	perror(what);
	exit(1);
}

static double now(void)
{
	struct timespec t;
	clock_gettime(CLOCK_MONOTONIC, &t);
	return t.tv_sec + t.tv_nsec * 1e-9;
}

static int begin(const char *kind, long amount)
{
	char line[64];
	int one = 1, s = socket(AF_INET, SOCK_STREAM, 0);
	if (s < 0 || connect(s, (void *)&peer, sizeof peer))
		die("connect");
	setsockopt(s, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
	int n = snprintf(line, sizeof line, "%s %ld\n", kind, amount);
	if (write(s, line, n) != n)
		die("write");
	return s;
}

static void get(int s, long left)
{
	while (left > 0) {
		ssize_t n = read(s, buffer, left < (long)sizeof buffer ? left : (long)sizeof buffer);
		if (n <= 0)
			die("read");
		left -= n;
	}
}

static void put(int s, long left, long piece)
{
	while (left > 0) {
		ssize_t n = write(s, buffer, left < piece ? left : piece);
		if (n <= 0)
			die("write");
		left -= n;
	}
}

int main(int argc, char **argv)
{
	if (argc != 5)
		return 2;
	const char *kind = argv[3];
	long amount = atol(argv[4]);
	peer.sin_port = htons(atoi(argv[2]));
	if (!inet_aton(argv[1], &peer.sin_addr))
		return 2;
	double start = now();
	if (!strcmp(kind, "open")) {
		for (long i = 0; i < amount; i++) {
			int s = begin("echo", 1);
			put(s, 64, 64);
			get(s, 64);
			close(s);
		}
	} else {
		int s = begin(kind, amount);
		if (!strcmp(kind, "down")) {
			get(s, amount << 20);
		} else if (!strcmp(kind, "echo")) {
			for (long i = 0; i < amount; i++) {
				put(s, 64, 64);
				get(s, 64);
			}
		} else {
			put(s, amount << 20, strcmp(kind, "small") ? (long)sizeof buffer : 1024);
			get(s, 1); /* all of it has arrived */
		}
	}
	printf("%s %.4f\n", kind, now() - start);
	return 0;
}
