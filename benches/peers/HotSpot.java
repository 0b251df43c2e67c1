// A stop of the world, and a handshake with one thread, by HotSpot: what its own log says that they took.
// The threads compute and poll (`loop`), or are parked (`park`). `handshake` suspends one that computes
// or, where Java has no such call any more, asks for its stack: each is one handshake there. Arguments and output are those of common.h; one more says in which file the log is:
// java -Xlog:safepoint,handshake:file=LOG -cp … HotSpot N SAMPLES MILLISECONDS loop|park|handshake LOG

import java.nio.file.Files;
import java.nio.file.Path;
import java.util.concurrent.locks.LockSupport;
import java.util.regex.Pattern;

public class HotSpot {
	static volatile boolean quit;
	static volatile long sink;

	static long work(long x) {
		for (int i = 0; i < 1000; i++) x = x * 6364136223846793005L + 1442695040888963407L;
		return x;
	}

	/** By reflection: newer compilers do not know the calls. */
	static void handshake(Thread thread) throws Exception {
		try {
			Thread.class.getMethod("suspend").invoke(thread);
			Thread.class.getMethod("resume").invoke(thread);
		} catch (ReflectiveOperationException gone) {
			thread.getStackTrace();
		}
	}

	public static void main(String[] args) throws Exception {
		int threads = Integer.parseInt(args[0]), samples = Integer.parseInt(args[1]);
		long budget = Long.parseLong(args[2]) * 1_000_000;
		String word = args[3];
		Thread[] all = new Thread[threads];
		for (int i = 0; i < threads; i++) {
			all[i] = new Thread(null, () -> {
				long x = 1;
				while (!quit) {
					if (word.equals("park")) LockSupport.park();
					else x = work(x);
				}
				sink = x;
			}, "w" + i, 256 * 1024);
			all[i].setDaemon(true);
			all[i].start();
		}
		// Until the loop is compiled.
		Thread.sleep(1000);
		long start = System.nanoTime();
		for (int i = 0; i < samples + 3 && (i < 6 || System.nanoTime() - start < budget); i++) {
			if (word.equals("handshake")) handshake(all[i % threads]);
			else System.gc();
			Thread.sleep(1);
		}
		Pattern line = Pattern.compile(word.equals("handshake")
			? "Handshake \".*Total completion time: (\\d+) ns$"
			: "Safepoint \".*Reaching safepoint: *(\\d+) ns");
		StringBuilder out = new StringBuilder("HotSpot:");
		// The first ones are of the start.
		int warm = 3;
		for (String entry : Files.readAllLines(Path.of(args[4]))) {
			var found = line.matcher(entry);
			if (found.find() && warm-- <= 0) out.append(' ').append(found.group(1));
		}
		System.out.println(out);
		System.out.flush();
		Runtime.getRuntime().halt(0);
	}
}
