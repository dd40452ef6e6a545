// Shared by the guest test programs: each check prints a line when it fails,
// and done() prints a verdict and gives the exit status. The same programs run
// natively as a control.
#include <stdio.h>
#include <stdlib.h>

static int failures, checks;

#define CHECK(cond, ...)                                        \
	do {                                                    \
		checks++;                                       \
		if (!(cond)) {                                  \
			failures++;                             \
			printf("FAIL %s:%d: %s: ", __FILE__, __LINE__, #cond); \
			printf(__VA_ARGS__);                    \
			printf("\n");                           \
		}                                               \
	} while (0)

static int done(const char *name)
{
	printf("%s %s: %d checks, %d failures\n", failures ? "FAIL" : "PASS", name, checks, failures);
	fflush(stdout);
	return failures != 0;
}
