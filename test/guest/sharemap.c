/* Maps files: itself, and the file in argv[1], which it makes. Without an
   argument it only runs. */
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#define SIZE 8192

static int fail(const char *what)
{
	perror(what);
	return 1;
}

int main(int argc, char **argv)
{
	if (argc < 2)
		return 0;
	int fd = open(argv[1], O_RDWR | O_CREAT | O_TRUNC, 0644);
	if (fd < 0 || ftruncate(fd, SIZE))
		return fail("file");
	char *shared = mmap(0, SIZE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	char *private = mmap(0, SIZE, PROT_READ | PROT_WRITE, MAP_PRIVATE, fd, 0);
	if (shared == MAP_FAILED || private == MAP_FAILED)
		return fail("mmap");
	strcpy(shared, "mapped by the guest");
	if (strcmp(private, shared))
		return fail("a private mapping does not show what is in the file");
	strcpy(private, "mine alone");
	if (strcmp(shared, "mapped by the guest"))
		return fail("a private mapping changes the file");
	if (msync(shared, SIZE, MS_SYNC))
		return fail("msync");
	char back[32] = "";
	if (pread(fd, back, sizeof back, 0) != sizeof back || strcmp(back, "mapped by the guest"))
		return fail("the file has not what was mapped");
	return 0;
}
