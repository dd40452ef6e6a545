# Workloads for a BusyBox shell: sh workloads.sh NAME. Each prices one
# thing: computing, creating processes, moving data, entering the kernel.
# $BUSYBOX is the path of BusyBox.
case $1 in
loop) # 200,000 rounds of a shell loop
	i=0
	while [ $i -lt 200000 ]; do i=$((i + 1)); done
	;;
spawn) # 200 programs, one after the other
	i=0
	while [ $i -lt 200 ]; do
		"$BUSYBOX" true
		i=$((i + 1))
	done
	;;
md5) # 64 MiB through a pipe into md5sum
	sum=$(dd if=/dev/zero bs=1M count=64 2>/dev/null | md5sum)
	[ "$sum" = "7f614da9329cd3aebf59b91aadc30bf0  -" ]
	;;
tiny) # 200,000 reads and 200,000 writes of one byte
	dd if=/dev/zero of=/dev/null bs=1 count=200000 2>/dev/null
	;;
compile) # the compiler proper over SQLite, 2.6 MB of preprocessed C
	"$BENCH_ROOT/bench/cc1" -quiet -fpreprocessed -O1 -w "$BENCH_ROOT/bench/sqlite3.i" -o /dev/null
	;;
*)
	exit 2
	;;
esac
