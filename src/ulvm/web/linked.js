// Opens the drawn example that the address names, as the gallery's links do: ./#example=grey.png

const NAME = /^#example=([a-z0-9-]+\.(?:jpg|png))$/; // a file of the page's own folder, nothing else

async function openNamed() {
  const name = NAME.exec(location.hash)?.[1];
  if (!name) return;
  history.replaceState(null, "", "./"); // a reload is for the page again
  const response = await fetch(`gallery/${name}`);
  if (!response.ok) return;
  const given = new DataTransfer();
  given.items.add(new File([await response.blob()], name));
  const input = document.getElementById("files");
  input.files = given.files;
  input.dispatchEvent(new Event("change"));
}

addEventListener("hashchange", openNamed);
openNamed();
